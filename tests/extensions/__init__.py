"""An extension of each kind, one file each, as a user would write them."""
