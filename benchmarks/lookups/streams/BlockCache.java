import java.util.Map;
import org.apache.kafka.streams.state.RocksDBConfigSetter;
import org.rocksdb.BlockBasedTableConfig;
import org.rocksdb.LRUCache;
import org.rocksdb.Options;
import org.rocksdb.RocksDB;

/** BlockCache gives all stores of RocksDB one cache of 512 MB. */
public final class BlockCache implements RocksDBConfigSetter {
    static {
        RocksDB.loadLibrary();
    }

    private static final LRUCache CACHE = new LRUCache(512L << 20);

    @Override
    public void setConfig(String store, Options options, Map<String, Object> configs) {
        BlockBasedTableConfig table = (BlockBasedTableConfig) options.tableFormatConfig();
        table.setBlockCache(CACHE);
        options.setTableFormatConfig(table);
    }

    @Override
    public void close(String store, Options options) {}
}
