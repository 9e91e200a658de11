"""What a task is, and the rules that it goes by: pure, without a clock, a store or a loop.

It imports no other package of taskd. Begin with `model`, whose values all of taskd uses;
`transitions` decides what becomes of a task when its lease ends, `retry` when it is due again.
`record` makes the classes of short-lived values.
"""
