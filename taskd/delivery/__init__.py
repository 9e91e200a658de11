"""One attempt: a callback signed, sent to an address that is allowed, and its answer judged.

It knows the domain and the runtime, not the Store, and not what decides when a callback is
due. Begin with `attempt`; `egress` and `resolver` say where a callback may go, `transport`
sends it, and `verdict` says what the answer means.
"""
