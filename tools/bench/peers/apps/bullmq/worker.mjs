// BullMQ's worker: finished jobs are removed, failed ones tried thrice.
import { Worker } from "bullmq";
import { connection, deliver, QUEUE, RECOVERY_S } from "./common.mjs";

const recovering = RECOVERY_S
  ? { lockDuration: RECOVERY_S * 1000, stalledInterval: RECOVERY_S * 500, maxStalledCount: 5 }
  : {};

const worker = new Worker(QUEUE, (job) => deliver(job.data.number, job.data.content), {
  connection: connection(true),
  concurrency: 64,
  removeOnComplete: { count: 0 },
  ...recovering,
});
worker.on("error", (error) => console.error(error.message));
