"""Episodes, figures, peers and reports."""
