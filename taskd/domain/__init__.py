"""What a task is, and the rules that it goes by: pure, without a clock, a store or a loop.

It knows nothing but itself. Begin with `model`, whose values all of taskd speaks in;
`transitions` is what becomes of a task when a lease ends, `retry` when it is due again.
"""
