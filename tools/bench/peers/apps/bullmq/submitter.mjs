// What submitter.py is to the Python peers: orders come as lines of JSON on standard
// input, and each is answered with one. 16 in flight are 16 pending promises.
import { createInterface } from "node:readline";
import { Queue } from "bullmq";
import { connection, QUEUE } from "./common.mjs";

const IN_FLIGHT = 16;
const BATCH = 100;
const OPTIONS = { removeOnComplete: true, attempts: 3 };

const redis = connection(false);
await redis.connect();
const queue = new Queue(QUEUE, { connection: redis });
await queue.waitUntilReady();

const tell = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
const sleep = (ms) => new Promise((wake) => setTimeout(wake, ms));
const now = () => performance.timeOrigin + performance.now();

function job(number, content, due) {
  const opts = due === null ? OPTIONS : { ...OPTIONS, delay: Math.max(0, due * 1000 - now()) };
  return { name: "callback", data: { number, content }, opts };
}

async function carryOut(order) {
  const { mode, first, count, content, rate = 0, due_s: dueFrom = 0, over_s: over = 0 } = order;
  const stopAt = now() + order.within_s * 1000;
  const result = { acknowledged: [], sent_us: [], errors: [] };
  const attempt = async (numbers, submit) => {
    try {
      await submit();
      result.acknowledged.push(...numbers);
    } catch (error) {
      if (result.errors.length < 5) result.errors.push(String(error).slice(0, 200));
      await sleep(50);
    }
  };
  const one = (number, due = null) =>
    attempt([number], () => {
      const { name, data, opts } = job(number, content, due);
      return queue.add(name, data, opts);
    });

  let next = first;
  const end = first + count;
  const share = async () => {
    while (next < end && now() < stopAt) await one(next++);
  };
  const began = now();
  if (mode === "flight") {
    await Promise.all(Array.from({ length: IN_FLIGHT }, share));
  } else if (mode === "batch") {
    while (next < end && now() < stopAt) {
      const numbers = [];
      while (next < end && numbers.length < BATCH) numbers.push(next++);
      await attempt(numbers, () => queue.addBulk(numbers.map((n) => job(n, content, null))));
    }
  } else {
    for (; next < end && now() < stopAt; next++) {
      if (rate) {
        const left = began + ((next - first) * 1000) / rate - now();
        if (left > 0) await sleep(left);
        result.sent_us.push([next, Math.round(now() * 1000)]);
      }
      await one(next, dueFrom ? dueFrom + ((next - first) * over) / count : null);
    }
  }
  return { began_s: began / 1000, ended_s: now() / 1000, ...result };
}

tell({ batch: true });
for await (const line of createInterface({ input: process.stdin })) {
  const before = process.cpuUsage();
  const result = await carryOut(JSON.parse(line));
  const used = process.cpuUsage(before);
  tell({ ...result, cpu_s: (used.user + used.system) / 1e6 });
}
process.exit(0);
