"""Who runs the replicas: one process, tf.distribute or Horovod, behind one wrapper."""

from dqat.distribute.elastic import ElasticState
from dqat.distribute.strategy import Strategy

__all__ = ["ElasticState", "Strategy"]
