//! Planner (pure), driver and sweeper over the Journal and a cloud provider.
