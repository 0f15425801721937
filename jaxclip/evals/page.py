"""A page with pictures; see write_page."""
