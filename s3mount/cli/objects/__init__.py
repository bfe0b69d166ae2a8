"""Commands on objects, without a mount."""
