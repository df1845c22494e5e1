// Drives MQTT.js for the tests: one command per line of JSON on standard input, one event per line on standard output.
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto";
import { createInterface } from "node:readline";
import mqtt from "mqtt";

const clients = new Map();

function tell(event) {
  process.stdout.write(JSON.stringify(event, replaceBuffers) + "\n");
}

function replaceBuffers(key, value) {
  return value && value.type === "Buffer" ? Buffer.from(value.data).toString() : value;
}

function properties(given) {
  const made = { ...given };
  if (made.correlationData) made.correlationData = Buffer.from(made.correlationData);
  return made;
}

// The client's side of SCRAM (RFC 5802), as a user of MQTT.js would write it.
class Scram {
  constructor(method, { username, password }) {
    this.hash = method === "SCRAM-SHA-512" ? "sha512" : "sha256";
    this.password = password;
    this.nonce = randomBytes(18).toString("base64");
    this.bare = `n=${username},r=${this.nonce}`;
  }

  hmac(key, text) {
    return createHmac(this.hash, key).update(text).digest();
  }

  final(challenge) {
    const fields = Object.fromEntries(challenge.split(",").map((part) => [part[0], part.slice(2)]));
    if (!fields.r.startsWith(this.nonce)) throw new Error("not my nonce");
    const size = createHash(this.hash).digest().length;
    const salted = pbkdf2Sync(this.password, Buffer.from(fields.s, "base64"), Number(fields.i), size, this.hash);
    const key = this.hmac(salted, "Client Key");
    const withoutProof = `c=biws,r=${fields.r}`;
    const message = `${this.bare},${challenge},${withoutProof}`;
    const signature = this.hmac(createHash(this.hash).update(key).digest(), message);
    this.expected = `v=${this.hmac(this.hmac(salted, "Server Key"), message).toString("base64")}`;
    return `${withoutProof},p=${Buffer.from(key.map((byte, at) => byte ^ signature[at])).toString("base64")}`;
  }
}

function withScram(command, options) {
  const authenticationMethod = options.properties.authenticationMethod;
  const scram = new Scram(authenticationMethod, command.scram);
  const authenticationData = Buffer.from(`n,,${scram.bare}`);
  return [scram, { ...options, properties: { authenticationMethod, authenticationData } }];
}

async function perform(command) {
  const { client: name, options = {} } = command;
  if (command.do === "connect") {
    const will = options.will && { ...options.will, payload: Buffer.from(options.will.payload) };
    const [scram, chosen] = command.scram ? withScram(command, options) : [null, options];
    const client = mqtt.connect(command.url, { reconnectPeriod: 0, ...chosen, ...(will && { will }) });
    clients.set(name, client);
    if (scram) {
      client.handleAuth = ({ properties: { authenticationMethod, authenticationData } }, done) => {
        const answer = Buffer.from(scram.final(authenticationData.toString()));
        const properties = { authenticationMethod, authenticationData: answer };
        done(undefined, { cmd: "auth", reasonCode: 24, properties });
      };
      client.once("connect", ({ properties }) => {
        client.verified = properties.authenticationData.toString() === scram.expected;
      });
    }
    client.on("message", (topic, payload, packet) => {
      const { qos, retain, dup, properties } = packet;
      tell({ event: "message", client: name, topic, payload: payload.toString(), qos, retain, dup, properties });
    });
    client.on("disconnect", (packet) => tell({ event: "disconnect", client: name, reasonCode: packet.reasonCode }));
    client.on("close", () => tell({ event: "close", client: name }));
    return await new Promise((resolve) => {
      client.once("connect", resolve);
      client.once("error", (error) => resolve({ error: error.message, code: error.code }));
    });
  }
  const client = clients.get(name);
  if (command.do === "subscribe") return await client.subscribeAsync(command.topic, options);
  if (command.do === "unsubscribe") return await client.unsubscribeAsync(command.topic);
  if (command.do === "publish") {
    const chosen = options.properties ? { ...options, properties: properties(options.properties) } : options;
    return await client.publishAsync(command.topic, command.payload, chosen);
  }
  if (command.do === "end") return await client.endAsync(false, options);
  if (command.do === "verified") return client.verified;
  if (command.do === "break") return client.stream.destroy();
  throw new Error(`unknown command ${command.do}`);
}

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  try {
    tell({ event: "done", result: (await perform(command)) ?? null });
  } catch (error) {
    tell({ event: "done", error: error.message, code: error.code ?? null });
  }
}
process.exit(0);
