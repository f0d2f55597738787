"""Many images: public collections to rows and packed pixels."""
