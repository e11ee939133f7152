"""A foreign client: reads topics with confluent-kafka's AvroDeserializer and
prints one JSON line per record.

Usage: read_topics.py BROKERS REGISTRY_URL TOPIC=COUNT...
"""

import datetime
import decimal
import json
import sys
import uuid

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext


def plain(value):
    if isinstance(value, bytes):
        return "hex:" + value.hex()
    if isinstance(value, (datetime.date, datetime.time, decimal.Decimal, uuid.UUID)):
        return type(value).__name__ + ":" + str(value)
    raise TypeError(type(value))


brokers, registry = sys.argv[1:3]
left = {t: int(n) for t, n in (a.split("=") for a in sys.argv[3:])}
deserialize = AvroDeserializer(SchemaRegistryClient({"url": registry}))
consumer = Consumer(
    {
        "bootstrap.servers": brokers,
        "group.id": "foreign",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
)
consumer.subscribe(list(left))
while any(left.values()):
    message = consumer.poll(20)
    if message is None:
        sys.exit("no record for 20 s, still wanted: %s" % left)
    if message.error():
        sys.exit(str(message.error()))
    topic = message.topic()
    key = deserialize(message.key(), SerializationContext(topic, MessageField.KEY))
    value = deserialize(message.value(), SerializationContext(topic, MessageField.VALUE))
    print(json.dumps({"topic": topic, "key": key, "value": value}, default=plain))
    left[topic] -= 1
consumer.close()
