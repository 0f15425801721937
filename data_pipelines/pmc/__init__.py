"""PMC Open Access articles -> a DATASET: fetch, JATS, figures, panels, context."""
