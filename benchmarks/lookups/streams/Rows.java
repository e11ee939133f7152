import java.nio.ByteBuffer;
import java.util.Arrays;
import org.apache.kafka.common.utils.Bytes;

/**
 * Rows knows the records of the four topics, and what is made of them. What is
 * made has no head; its fields are Avro's, and mostly copied as they lie:
 * a project with its customer is number, customer_id, customer's name,
 * legal_entity, currency; an entry with its project is resource_id, project_id,
 * work_date, hours, billable, status, and then all of that.
 */
final class Rows {
    private static Cursor record(byte[] value) {
        return new Cursor(value, Cursor.HEAD);
    }

    /** ps.project: project_id, number, name, customer_id, legal_entity, currency, … */
    static Bytes customerOf(byte[] project) {
        return record(project).skip(3).text();
    }

    /** ps.customer: customer_id, number, name, … */
    static byte[] withCustomer(byte[] project, byte[] customer) {
        Cursor c = record(customer).skip(2);
        int name = c.at;
        c.skip(1);
        Cursor p = record(project).skip(1);
        int number = p.at;
        p.skip(1);
        int afterNumber = p.at;
        p.skip(1);
        int id = p.at;
        p.skip(1);
        int entity = p.at;
        p.skip(2);
        ByteBuffer out = ByteBuffer.allocate(afterNumber - number + p.at - id + c.at - name);
        out.put(project, number, afterNumber - number).put(project, id, entity - id);
        return out.put(customer, name, c.at - name).put(project, entity, p.at - entity).array();
    }

    /** ps.time_entry: time_entry_id, resource_id, project_id, task_number?, work_date, hours, billable, status, … */
    static Bytes projectOf(byte[] entry) {
        return record(entry).skip(2).text();
    }

    static byte[] withProject(byte[] entry, byte[] project) {
        Cursor c = record(entry).skip(1);
        int ids = c.at;
        c.skip(2);
        int task = c.at;
        if (c.some()) {
            c.skip(1);
        }
        int date = c.at;
        c.number();
        c.skip(1);
        c.at++; // billable
        c.skip(1);
        ByteBuffer out = ByteBuffer.allocate(task - ids + c.at - date + project.length);
        return out.put(entry, ids, task - ids).put(entry, date, c.at - date).put(project).array();
    }

    static Bytes resourceOf(byte[] withProject) {
        return new Cursor(withProject, 0).text();
    }

    /** ps.cost_rate: cost_rate_id, resource_id, valid_from, valid_to?, rate, currency, updated_at. */
    static Bytes resourceOfRate(byte[] rate) {
        return record(rate).skip(1).text();
    }

    /** The list of a resource's rates is their records one after the other, without heads. */
    static byte[] add(byte[] rate, byte[] list) {
        return Cursor.join(list, 0, list.length, rate, Cursor.HEAD, rate.length);
    }

    static byte[] remove(byte[] rate, byte[] list) {
        Bytes id = record(rate).text();
        Cursor c = new Cursor(list, 0);
        while (c.more()) {
            int from = c.at;
            boolean it = c.text().equals(id);
            c.skip(1).number();
            if (c.some()) {
                c.number();
            }
            c.skip(2).number();
            if (it) {
                return Cursor.join(list, 0, from, list, c.at, list.length);
            }
        }
        return list;
    }

    /**
     * Adds the id and the amount of the rate that is in force and in the
     * project's currency, and the cost, ten digits after the point, in eight
     * octets. Without such a rate nothing is added.
     */
    static byte[] withCost(byte[] entry, byte[] rates) {
        Cursor e = new Cursor(entry, 0).skip(2);
        long day = e.number();
        long hours = e.decimal();
        e.at++; // billable
        e.skip(5);
        int currency = e.at;
        Cursor c = new Cursor(rates, 0);
        while (c.more()) {
            int id = c.at;
            c.skip(1);
            int afterId = c.at;
            c.skip(1);
            boolean holds = c.number() <= day;
            if (c.some()) {
                holds &= day < c.number();
            }
            int amount = c.at;
            long rate = c.decimal();
            int of = c.at;
            c.skip(1);
            holds &= Arrays.equals(entry, currency, entry.length, rates, of, c.at);
            c.number();
            if (holds) {
                ByteBuffer out = ByteBuffer.allocate(entry.length + afterId - id + of - amount + Long.BYTES);
                out.put(entry).put(rates, id, afterId - id).put(rates, amount, of - amount);
                return out.putLong(Math.multiplyExact(hours, rate)).array();
            }
        }
        return entry;
    }
}
