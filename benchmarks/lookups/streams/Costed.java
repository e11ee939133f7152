import java.nio.ByteBuffer;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.common.utils.Utils;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KTable;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TableJoined;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.state.BuiltInDslStoreSuppliers;

/**
 * Costed joins time entries with their project, its customer and the rate in
 * force, all sides changing: three foreign-key joins. Of the customer first
 * with the project, so that an entry takes part in two of them, not in three.
 *
 * Arguments: broker, application id, output topic, id of the keys' schema,
 * state folder, rocksdb or memory.
 */
public final class Costed {
    public static void main(String[] args) {
        Properties p = new Properties();
        p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        p.put(StreamsConfig.APPLICATION_ID_CONFIG, args[1]);
        p.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
        p.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        p.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
        p.put(StreamsConfig.TOPOLOGY_OPTIMIZATION_CONFIG, StreamsConfig.OPTIMIZE);
        p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0);
        p.put(StreamsConfig.REPLICATION_FACTOR_CONFIG, 1);
        p.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 20);
        p.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
        p.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
        p.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        if (args[5].equals("memory")) {
            p.put(StreamsConfig.DSL_STORE_SUPPLIERS_CLASS_CONFIG, BuiltInDslStoreSuppliers.InMemoryDslStoreSuppliers.class);
        } else {
            p.put(StreamsConfig.ROCKSDB_CONFIG_SETTER_CLASS_CONFIG, BlockCache.class);
        }
        KafkaStreams streams = new KafkaStreams(topology(args[2], Integer.parseInt(args[3]), p), p);
        streams.setUncaughtExceptionHandler(e -> {
            e.printStackTrace();
            Runtime.getRuntime().halt(1);
            return null;
        });
        Runtime.getRuntime().addShutdownHook(new Thread(streams::close));
        streams.start();
    }

    private static org.apache.kafka.streams.Topology topology(String output, int schema, Properties p) {
        Serde<Bytes> avro = avroText(schema);
        Serde<Bytes> text = Serdes.Bytes();
        Serde<byte[]> values = Serdes.ByteArray();
        // The topics are partitioned by the key's text, not by its Avro.
        StreamPartitioner<Bytes, Void> byText =
                (topic, key, value, n) -> Optional.of(Set.of(Utils.toPositive(Utils.murmur2(key.get())) % n));
        TableJoined<Bytes, Bytes> joined = TableJoined.with(byText, byText);

        StreamsBuilder b = new StreamsBuilder();
        Consumed<Bytes, byte[]> consumed = Consumed.with(avro, values);
        KTable<Bytes, byte[]> entries = b.table("ps.time_entry", consumed);
        KTable<Bytes, byte[]> projects = b.table("ps.project", consumed);
        KTable<Bytes, byte[]> customers = b.table("ps.customer", consumed);
        KTable<Bytes, byte[]> rates = b.table("ps.cost_rate", consumed)
                .groupBy((id, rate) -> KeyValue.pair(Rows.resourceOfRate(rate), rate), Grouped.with(text, values))
                .aggregate(() -> new byte[0], (resource, rate, list) -> Rows.add(rate, list),
                        (resource, rate, list) -> Rows.remove(rate, list), Materialized.with(text, values));
        KTable<Bytes, byte[]> whole = projects.join(customers, Rows::customerOf, Rows::withCustomer, joined, Materialized.with(avro, values));
        entries.join(whole, Rows::projectOf, Rows::withProject, joined, Materialized.with(avro, values))
                .join(rates, Rows::resourceOf, Rows::withCost, joined, Materialized.with(avro, values))
                .toStream().to(output, Produced.with(avro, values));
        return b.build(p);
    }

    /** Keys: a string in Avro, behind the head; here they are their text. */
    private static Serde<Bytes> avroText(int schema) {
        return Serdes.serdeFrom(
                (topic, key) -> {
                    byte[] t = key.get();
                    ByteBuffer out = ByteBuffer.allocate(Cursor.HEAD + (t.length < 64 ? 1 : 2) + t.length).put((byte) 0).putInt(schema);
                    int n = t.length << 1; // zigzag; keys are shorter than 8,192 octets
                    if (n < 128) {
                        out.put((byte) n);
                    } else {
                        out.put((byte) (n | 0x80)).put((byte) (n >> 7));
                    }
                    return out.put(t).array();
                },
                (topic, octets) -> octets == null ? null : new Cursor(octets, Cursor.HEAD).text());
    }
}
