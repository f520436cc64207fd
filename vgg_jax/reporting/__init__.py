"""A run, several, or a whole reproduction as one page: `history` reads, `charts` and `images` draw, `page` writes."""
