"""A recipe at several values of its params and several seeds, each trained and measured; mean, deviation and frontier."""
