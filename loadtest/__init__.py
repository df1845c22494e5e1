"""Load generation: scenarios that are run against a broker and measured."""
