"""How long each stage takes, what it computes, and what the machine could do (`diffseg bench`)."""
