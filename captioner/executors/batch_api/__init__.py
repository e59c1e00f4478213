"""The provider's batch API: the same records at half the price, for those who can wait a day."""
