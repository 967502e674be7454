"""How the tiny base was made, from its drawings to its weights; see ../README.md."""
