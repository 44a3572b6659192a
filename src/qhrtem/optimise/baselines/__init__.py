"""What a sceptic would use instead, under the same interface; each module loads when asked for."""
