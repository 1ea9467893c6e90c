"""Jobs: many queries with candidates, ranked shard by shard, so that an interrupted job can be continued.

`inputs` finds files and splits them into shards, `joining` makes rows from a TREC run, `folder` keeps the finished
shards, `planning` decides what is left and ranks a shard. Nothing here depends on who ranks the shards: this process,
or the actors of `marcorank.ray`.
"""
