"""The two reductions that range sync needs, over whatever `tf.distribute` strategy runs the step.

Both are called by every replica inside `strategy.run`, which `fit` does. In public, `tf.distribute` sums and
averages, but knows no Max. So each replica puts its vector into its own row of a matrix of zeros and the
matrices are summed: as integers, which is exact for the bits of any float32. That is one collective.
(`ReplicaContext.all_gather` does the same in two, as it asks for the lengths first.)
"""

import tensorflow as tf


def _context() -> tf.distribute.ReplicaContext:
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError(
            "a training step of a quantized model ran in the scope of a tf.distribute strategy, but on no replica: "
            "call model.fit, or run the step with strategy.run(step, (batch,))"
        )
    return context


def gather(vector: tf.Tensor) -> tf.Tensor:
    """All replicas' vectors.

    Args:
        vector: float32 [n].

    Returns:
        float32 [replicas, n], to the bit.
    """
    context = _context()
    if context.num_replicas_in_sync == 1:
        return vector[tf.newaxis]
    bits = tf.bitcast(vector, tf.int32)
    mine = tf.equal(tf.range(context.num_replicas_in_sync), context.replica_id_in_sync_group)
    rows = tf.where(mine[:, tf.newaxis], bits[tf.newaxis], 0)
    return tf.bitcast(context.all_reduce(tf.distribute.ReduceOp.SUM, rows), tf.float32)


def all_reduce_max(vector: tf.Tensor, name: str) -> tf.Tensor:
    """The elementwise largest of a float32 vector over all replicas."""
    return tf.reduce_max(gather(vector), axis=0)


def all_reduce_sum(vector: tf.Tensor, name: str) -> tf.Tensor:
    """The elementwise sum of an int64 vector over all replicas; exact, as integers are."""
    return _context().all_reduce(tf.distribute.ReduceOp.SUM, vector)
