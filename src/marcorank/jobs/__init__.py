"""Jobs: many queries with candidates, ranked shard by shard, so that an interrupted job can be resumed.

`inputs` finds files and splits them into shards, `joining` makes rows from a TREC run, `folder` keeps finished shards,
and `planning` decides what is left and ranks a shard, in this process or in the actors of `marcorank.ray`.
"""
