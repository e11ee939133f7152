import java.util.Arrays;
import org.apache.kafka.common.utils.Bytes;

/** Cursor reads Avro's fields in order; what is skipped is not copied. */
final class Cursor {
    /** The octets before a record: a zero and the number of its schema. */
    static final int HEAD = 5;

    final byte[] octets;
    int at;

    Cursor(byte[] octets, int at) {
        this.octets = octets;
        this.at = at;
    }

    boolean more() {
        return at < octets.length;
    }

    /** An int or a long: zigzag, seven bits in an octet. */
    long number() {
        long n = 0;
        for (int shift = 0; ; shift += 7) {
            byte b = octets[at++];
            n |= (long) (b & 0x7f) << shift;
            if (b >= 0) {
                return n >>> 1 ^ -(n & 1);
            }
        }
    }

    /** Whether a union with null has a value. */
    boolean some() {
        return number() != 0;
    }

    /** Passes strings or bytes. */
    Cursor skip(int fields) {
        for (; fields > 0; fields--) {
            int n = (int) number();
            at += n;
        }
        return this;
    }

    Bytes text() {
        int n = (int) number();
        at += n;
        return Bytes.wrap(Arrays.copyOfRange(octets, at - n, at));
    }

    /** The unscaled number of a decimal of up to eight octets. */
    long decimal() {
        int end = (int) number();
        end += at;
        long n = octets[at++];
        while (at < end) {
            n = n << 8 | octets[at++] & 0xff;
        }
        return n;
    }

    /** What lies between two places. */
    static byte[] join(byte[] a, int from, int to, byte[] b, int bFrom, int bTo) {
        byte[] out = Arrays.copyOf(Arrays.copyOfRange(a, from, to), to - from + bTo - bFrom);
        System.arraycopy(b, bFrom, out, to - from, bTo - bFrom);
        return out;
    }
}
