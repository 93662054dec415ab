"""How chips compute: one module for each rule that turns a layer's shape and bit-widths into cycles."""
