"""Reading runs and drawing them."""
