// The queue's name and connection, and the job: sign a callback as taskd does, POST it
// over undici's pool of kept connections, take nothing but `success` for an answer.
import { createHash, createHmac, randomBytes } from "node:crypto";
import { Redis } from "ioredis";
import { Pool } from "undici";

export const QUEUE = "peers";
export const RECOVERY_S = Number(process.env.PEERS_RECOVERY_S ?? 0);

const SECRET = process.env.PEERS_SECRET;
const receiver = new Pool(`http://127.0.0.1:${process.env.PEERS_RECEIVER}`, {
  connections: 64,
  keepAliveTimeout: 60_000,
});

// BullMQ wants retries without end of a worker's connection, and advises failing fast
// of a producer's.
export function connection(isWorker) {
  const redis = new Redis(process.env.PEERS_BROKER, {
    maxRetriesPerRequest: isWorker ? null : 1,
    enableOfflineQueue: isWorker,
    lazyConnect: !isWorker,
    retryStrategy: () => 100,
  });
  redis.on("error", (error) => console.error(error.message));
  return redis;
}

export async function deliver(number, content) {
  const body = `{"data": ${content}}`;
  const timestamps = String(Math.floor(Date.now() / 1000));
  const nonce = `cb-${randomBytes(12).toString("hex")}`;
  const payload = createHash("sha256").update(body).digest("hex");
  const digest = createHmac("sha256", SECRET)
    .update(timestamps + nonce + payload)
    .digest("hex");
  const { body: answer } = await receiver.request({
    method: "POST",
    path: "/callback",
    headers: {
      "content-type": "application/json",
      app_key: "peer",
      nonce,
      timestamps,
      payload,
      signature: Buffer.from(digest).toString("base64"),
      "taskd-task-no": String(number),
    },
    body,
  });
  const text = await answer.text();
  if (text !== "success") throw new Error(`the receiver answered ${text}`);
}
