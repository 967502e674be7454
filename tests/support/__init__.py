"""Material that several test folders share."""
