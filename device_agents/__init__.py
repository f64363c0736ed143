"""Device agents: lease jobs from the service, measure them on a device, report what was seen."""
