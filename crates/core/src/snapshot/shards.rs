//! A map split into shared shards: changing one entry copies one shard, not the map.
