"""Commands on manifests."""
