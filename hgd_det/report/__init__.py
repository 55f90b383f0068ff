"""What finished runs say: one page of figures and pictures. Nothing here starts a process."""
