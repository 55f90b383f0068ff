"""What a detector is worth: VOC's and COCO's measures."""
