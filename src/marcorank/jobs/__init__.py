"""Many queries with candidates, ranked a shard at a time, so that a run that ended goes on where it stopped.

`requests` says what a row of input and of output is, `inputs` cuts files into shards, `folder` keeps what is finished,
`jobs` ranks a shard. Nothing here knows who ranks them: this process, or the actors of `marcorank.ray`.
"""
