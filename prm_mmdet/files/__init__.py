"""Write files whole or not at all, and read files without running code in them."""
