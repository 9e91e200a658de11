"""One attempt: a callback signed, sent to an address that is allowed, and its answer judged.

It knows the domain and the runtime, not the Store, and not what decides when a callback is
due. Begin with `attempt`; `egress` and `resolver` say where a callback may go (never to
`own_addresses`, unless allowed), `transport` sends it, `verdict` says what the answer means,
and `discretion` keeps what must not be learnt about closed networks out of it.
"""
