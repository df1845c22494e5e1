// Drives MQTT.js for the tests: one command per line of JSON on standard input, one event per line on standard output.
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

async function perform(command) {
  const { client: name, options = {} } = command;
  if (command.do === "connect") {
    const will = options.will && { ...options.will, payload: Buffer.from(options.will.payload) };
    const client = mqtt.connect(command.url, { reconnectPeriod: 0, ...options, ...(will && { will }) });
    clients.set(name, client);
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
