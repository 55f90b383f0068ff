"""What runs came to: one page of figures and pictures, and the tables behind it."""
