"""What a technique is: the recipe, the attachment, their settings and their composition."""
