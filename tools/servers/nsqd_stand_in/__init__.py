"""A stand-in for nsqd and nsqlookupd, where the real ones are not at hand. Begin with `nsqd`."""
