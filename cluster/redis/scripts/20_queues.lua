-- Queues of sessions: acknowledged and read back.

-- Takes seqs out of a queue: `done` for good, `received` into the set of those in release. Returns the new counters.
local function remove(queue, rel, done, received, count, bytes, releasing)
  local call = redis.call
  if #received == 0 and #done >= count then
    -- Usually all of it: then the sizes need not be asked for.
    count = count - in_chunks('HDEL', queue, done)
    bytes = 0
    if count > 0 then
      for _, seq in ipairs(call('HKEYS', queue)) do
        bytes = bytes + call('HSTRLEN', queue, seq)
      end
    end
    return count, bytes, releasing
  end
  for j = 1, #done do
    bytes = bytes - call('HSTRLEN', queue, done[j])
  end
  count = count - in_chunks('HDEL', queue, done)
  for j = 1, #received do
    local size = call('HSTRLEN', queue, received[j])
    if size > 0 then
      bytes = bytes - size
      count = count - call('HDEL', queue, received[j])
      releasing = releasing + call('SADD', rel, received[j])
    end
  end
  return count, bytes, releasing
end

-- Removes what receivers and publishers are done with. args: msgpack of sessions, each
-- {sid, token, sent seq, acknowledged seqs, received seqs, released packet ids}.
-- Returns the positions of sessions that another owns.
local function settle(keys, args)
  local p, call = keys[1], redis.call
  local sessions, lost = cmsgpack.unpack(args[1]), {}
  for i = 1, #sessions do
    local item = sessions[i]
    local sid, done, received, released = item[1], item[4], item[5], item[6]
    local key = p .. 's:' .. sid
    local s = call('HMGET', key, 'token', 'c')
    if s[1] ~= item[2] then
      lost[#lost + 1] = i
    else
      if #done + #received > 0 then
        local queue = p .. 'q:' .. sid
        local birth, last, count, bytes, releasing, sent, known, uv = struct.unpack(COUNTERS, s[2])
        if count > 0 then
          count, bytes, releasing = remove(queue, p .. 'rel:' .. sid, done, received, count, bytes, releasing)
        end
        if releasing > 0 then
          releasing = releasing - in_chunks('SREM', p .. 'rel:' .. sid, done)
        end
        call('HSET', key, 'c',
          struct.pack(COUNTERS, birth, last, count, bytes, releasing, math.max(sent, item[3]), known, uv))
      end
      in_chunks('HDEL', p .. 'in:' .. sid, released)
    end
  end
  return lost
end

-- Keeps message ids of inbound QoS 2 packets. args: msgpack of sessions, each {sid, token, packet id, message id, ...}.
-- Returns the positions of sessions that another owns. A full store takes it, since it is little and goes again with
-- the answer to the message: were it refused, the order of messages would depend on who is refused when.
local function reserve(keys, args)
  local p = keys[1]
  local sessions, lost = cmsgpack.unpack(args[1]), {}
  for i = 1, #sessions do
    local item = sessions[i]
    if redis.call('HGET', p .. 's:' .. item[1], 'token') ~= item[2] then
      lost[#lost + 1] = i
    else
      redis.call('HSET', p .. 'in:' .. item[1], unpack(item, 3))
    end
  end
  return lost
end

-- args: sid, birth, after seq, limit. Returns seq, value ... in order; nothing at the end or if the session is gone.
local function page(keys, args)
  local p, sid, after, limit = keys[1], args[1], tonumber(args[3]), tonumber(args[4])
  local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'c', 'lo')
  if s[1] ~= args[2] then
    return {}
  end
  local _, last, count = struct.unpack(COUNTERS, s[2])
  if count == 0 then
    return {}
  end
  local queue, first = p .. 'q:' .. sid, math.max(after + 1, tonumber(s[3]))
  local answer, bytes = {}, 0
  local function take(seqs)
    local values = redis.call('HMGET', queue, unpack(seqs))
    for i = 1, #seqs do
      if values[i] and bytes < PAGE_BYTES and #answer < 2 * limit then
        answer[#answer + 1] = seqs[i]
        answer[#answer + 1] = values[i]
        bytes = bytes + #values[i]
      end
    end
  end
  local seqs = {}
  for seq = first, math.min(first + limit - 1, last) do
    seqs[#seqs + 1] = seq
  end
  if #seqs == 0 then
    return {}
  end
  take(seqs)
  -- Gaps: the seqs that are there, rather than all that might be.
  if #answer < 2 * limit and bytes < PAGE_BYTES and first + limit <= last then
    local rest = {}
    for _, field in ipairs(redis.call('HKEYS', queue)) do
      local seq = tonumber(field)
      if seq >= first + limit then
        rest[#rest + 1] = seq
      end
    end
    table.sort(rest)
    if #rest > 0 then
      take({ unpack(rest, 1, math.min(#rest, limit)) })
    end
  end
  return answer
end

redis.register_function { function_name = 'rk1_settle', callback = settle, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_reserve', callback = reserve, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_page', callback = page, flags = { 'no-writes' } }
