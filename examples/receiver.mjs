// A receiver of taskd's callbacks, with Node's own modules alone.
//
//     TASKD_APP_KEY=... TASKD_SECRET_KEY=... node examples/receiver.mjs [PORT]
//
// Listens on 127.0.0.1 (any free port without PORT) and prints its address.

import { createHash, createHmac, timingSafeEqual } from 'node:crypto'
import { createServer } from 'node:http'

const WINDOW_S = 300
const MAX_BODY = 2 * 1024 * 1024
const { TASKD_APP_KEY: APP_KEY, TASKD_SECRET_KEY: SECRET_KEY } = process.env

// nonce -> the second from which its timestamp gives a replay away anyway
const seenNonces = new Map()
// A real receiver keeps this in its database, with the work itself in one transaction.
const doneTasks = new Set()

class Refused extends Error {}

// taskd sends app_key as app-key as well, since many proxies drop names with underscores.
// What comes twice under one name is joined by commas, by Node and by proxies.
function signedHeader (headers, name) {
  const sent = [headers[name], headers[name.replace('_', '-')]].filter(value => value !== undefined)
  const values = new Set(sent.join(',').split(',').map(value => value.trim()))
  if (values.size !== 1) throw new Refused(`${name} comes twice, with different values`)
  const [value] = values
  if (value === '') throw new Refused(`${name} is missing`)
  return value
}

function equal (a, b) {
  const [left, right] = [Buffer.from(a), Buffer.from(b)]
  return left.length === right.length && timingSafeEqual(left, right)
}

function check (headers, body, now) {
  const [appKey, nonce, timestamps, signature, payload] =
    ['app_key', 'nonce', 'timestamps', 'signature', 'payload'].map(name => signedHeader(headers, name))
  if (!/^[0-9]{10}$/.test(timestamps)) throw new Refused('timestamps is no Unix time')
  if (Math.abs(now - Number(timestamps)) > WINDOW_S) {
    throw new Refused('timestamps is outside the window: a late replay, or a wrong clock')
  }
  const digest = createHmac('sha256', SECRET_KEY).update(timestamps + nonce + payload).digest('hex')
  // Both are compared, in constant time, so that the time tells nothing.
  const rightKey = equal(appKey, APP_KEY)
  const rightSignature = equal(signature, Buffer.from(digest).toString('base64'))
  if (!rightKey || !rightSignature) throw new Refused('unknown app_key or bad signature')
  if (!equal(payload, createHash('sha256').update(body).digest('hex'))) {
    throw new Refused('the body is not the one that was signed')
  }
  for (const [old, end] of seenNonces) if (end <= now) seenNonces.delete(old)
  if (seenNonces.has(nonce)) throw new Refused('the nonce came before: a replay')
  seenNonces.set(nonce, now + 2 * WINDOW_S)
}

// taskd delivers at least once: do the work unless an earlier attempt did it.
function work (taskId, attempt, data) {
  if (doneTasks.has(taskId)) {
    console.log(`task ${taskId} attempt ${attempt}: a repeat, done before`)
    return
  }
  console.log(`task ${taskId} attempt ${attempt}: ${JSON.stringify(data)}`)
  doneTasks.add(taskId)
}

async function readBody (request) {
  const parts = []
  for await (const part of request) parts.push(part)
  return Buffer.concat(parts)
}

async function handle (request) {
  if (request.method !== 'POST') return [405, 'POST only']
  // taskd always sends it, and Node reads no more than it says.
  if (!(Number(request.headers['content-length']) <= MAX_BODY)) {
    return [413, 'Content-Length is missing or too big']
  }
  const body = await readBody(request)
  try {
    check(request.headers, body, Date.now() / 1000)
  } catch (error) {
    if (!(error instanceof Refused)) throw error
    console.log(`refused: ${error.message}`)
    return [401, error.message]
  }
  let callback
  try {
    callback = JSON.parse(body.toString('utf8'))
  } catch {
    return [400, 'the body is no callback']
  }
  if (callback === null || !Object.hasOwn(callback, 'data')) return [400, 'the body is no callback']
  work(request.headers['taskd-task-id'], request.headers['taskd-attempt'], callback.data)
  return [200, 'success']
}

const server = createServer((request, response) => {
  handle(request)
    .then(([status, text]) => {
      response.setHeader('Content-Type', 'text/plain; charset=utf-8')
      if (status === 413) response.setHeader('Connection', 'close')
      response.writeHead(status)
      response.end(text)
    })
    // The connection broke while the body was read: there is nobody to answer.
    .catch(error => { console.log(`broken off: ${error.message}`); response.destroy() })
})

if (!APP_KEY || !SECRET_KEY) {
  console.error('set TASKD_APP_KEY and TASKD_SECRET_KEY in the environment')
  process.exit(1)
}
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}/`)
})
