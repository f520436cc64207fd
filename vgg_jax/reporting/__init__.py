"""A run, several, or a whole reproduction as one page: `runs` reads, `charts` and `images` draw, `page` writes."""
