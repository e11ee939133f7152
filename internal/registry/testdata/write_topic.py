"""A foreign client: registers a schema and writes one record with
confluent-kafka's AvroSerializer.

Usage: write_topic.py BROKERS REGISTRY_URL TOPIC SCHEMA_FILE
"""

import datetime
import decimal
import sys

from confluent_kafka import Producer
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

brokers, url, topic, schema_file = sys.argv[1:]
registry = SchemaRegistryClient({"url": url})
with open(schema_file) as f:
    value_schema = f.read()
key = AvroSerializer(registry, '"string"')
value = AvroSerializer(registry, value_schema)
producer = Producer({"bootstrap.servers": brokers})
producer.produce(
    topic,
    key=key("12/7", SerializationContext(topic, MessageField.KEY)),
    value=value(
        {
            "cost_rate_id": "12/7",
            "resource_id": "12",
            "valid_from": datetime.date(2026, 3, 3),
            "valid_to": None,
            "rate": decimal.Decimal("98.5"),
            "currency": "EUR",
            "updated_at": datetime.datetime(2026, 2, 2, 2, 40, 0, 1, tzinfo=datetime.timezone.utc),
        },
        SerializationContext(topic, MessageField.VALUE),
    ),
)
left = producer.flush(20)
if left:
    sys.exit("%d records were not taken" % left)
