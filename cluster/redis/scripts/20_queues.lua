-- Queues: what is added to sessions and groups, read back and acknowledged.

-- Adds messages. args: node, inc, valid_until, number, max messages, max bytes, max group entries, then msgpack of
-- {bodies, sessions, groups, message ids}, a session being {sid, birth, body index, prefix, message id index, ...} and
-- a group {gid, body index, message id index}; a message id index 0 means no dedupe.
-- Answer: msgpack of a seq (or -1 full, -2 gone, 0 served before) per message of a session, then an entry id or '' per group.
local function enqueue(keys, args)
  local p = keys[1]
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local call = redis.call
  local max_count, max_bytes, max_group = tonumber(args[5]), tonumber(args[6]), tonumber(args[7])
  local batch = cmsgpack.unpack(args[8])
  local bodies, sessions, groups, ids = batch[1], batch[2], batch[3], batch[4]
  local answer, a = {}, 0
  for i = 1, #sessions do
    local item = sessions[i]
    local sid = item[1]
    local key, queue = p .. 's:' .. sid, p .. 'q:' .. sid
    local counters = call('HGET', key, 'c')
    local birth, seq, count, bytes, releasing, sent
    if counters then
      birth, seq, count, bytes, releasing, sent = struct.unpack(COUNTERS, counters)
    end
    if birth ~= item[2] then
      for _ = 3, #item, 3 do
        a = a + 1
        answer[a] = -2
      end
    else
      local first, fields, f = seq, {}, 0
      for j = 3, #item, 3 do
        a = a + 1
        local id = ids[item[j + 2]]
        local value = item[j + 1] .. bodies[item[j]]
        if id and call('SISMEMBER', p .. 'd:' .. id, sid) == 1 then
          answer[a] = 0
        elseif count >= max_count or bytes + #value > max_bytes then
          answer[a] = -1
        else
          seq, count, bytes = seq + 1, count + 1, bytes + #value
          fields[f + 1], fields[f + 2] = seq, value
          f = f + 2
          answer[a] = seq
          if id then
            call('SADD', p .. 'd:' .. id, sid)
            call('EXPIRE', p .. 'd:' .. id, SERVED_S)
          end
        end
      end
      if seq > first then
        if f == 2 then
          call('HSET', queue, fields[1], fields[2])
        else
          in_chunks('HSET', queue, fields)
        end
        call('HSET', key, 'c', struct.pack(COUNTERS, birth, seq, count, bytes, releasing, sent))
      end
    end
  end
  for i = 1, #groups do
    local item = groups[i]
    local gid, id, entry = item[1], ids[item[3]], ''
    local served = id and call('SISMEMBER', p .. 'd:' .. id, gid) == 1
    local queue = p .. 'g:' .. gid
    if not served and call('SISMEMBER', p .. 'gs', gid) == 1 and call('XLEN', queue) < max_group then
      entry = call('XADD', queue, '*', 'm', '\1' .. bodies[item[2]])
      if id then
        call('SADD', p .. 'd:' .. id, gid)
        call('EXPIRE', p .. 'd:' .. id, SERVED_S)
      end
    end
    a = a + 1
    answer[a] = entry
  end
  return answered(p, args, cmsgpack.pack(answer))
end

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
        local birth, last, count, bytes, releasing, sent = struct.unpack(COUNTERS, s[2])
        if count > 0 then
          count, bytes, releasing = remove(queue, p .. 'rel:' .. sid, done, received, count, bytes, releasing)
        end
        if releasing > 0 then
          releasing = releasing - in_chunks('SREM', p .. 'rel:' .. sid, done)
        end
        call('HSET', key, 'c',
          struct.pack(COUNTERS, birth, last, count, bytes, releasing, math.max(sent, item[3])))
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

-- args: gid, 1 if the group has members. Without members its queue goes.
local function group(keys, args)
  local p, gid = keys[1], args[1]
  if args[2] == '1' then
    return redis.call('SADD', p .. 'gs', gid)
  end
  redis.call('UNLINK', p .. 'g:' .. gid, p .. 'ga:' .. gid)
  return redis.call('SREM', p .. 'gs', gid)
end

redis.register_function('rk1_enqueue', enqueue)
redis.register_function { function_name = 'rk1_settle', callback = settle, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_reserve', callback = reserve, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_page', callback = page, flags = { 'no-writes' } }
redis.register_function { function_name = 'rk1_group', callback = group, flags = { 'allow-oom' } }
