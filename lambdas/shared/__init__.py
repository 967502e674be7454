"""What the functions share: settings, log, conditional writes."""
