-- Streams between nodes: each member has one for its connected sessions that are not persistent ({n:<member>}:in), and
-- one in each partition for what happens there to the sessions and groups that it serves (n:<member>). Ids are 0-1, 0-2
-- and so on, so a reader sees from a gap that it lost some.

local STREAM_ENTRIES, STREAM_BYTES = 20000, 67108864 -- bounds of an in-stream
local STREAM_LONG = 1000 -- a partition stream with more entries gets no bodies that are in a queue anyway

-- Makes an empty stream unless it is there. args: suffix, 'in' or 'n:<member>'.
-- Returns its last id, nil if that member is dead.
local function open(keys, args)
  local key = keys[1] .. args[1]
  if string.sub(args[1], 1, 2) == 'n:' and is_dead(keys[1], string.sub(args[1], 3)) then
    return nil
  end
  if redis.call('EXISTS', key) == 0 then
    redis.call('XGROUP', 'CREATE', key, 'x', '$', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', key, 'x')
    return '0-0'
  end
  local info = redis.call('XINFO', 'STREAM', key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then
      return info[i + 1]
    end
  end
end

-- Appends to a node's in-stream: field 'b', and in 'n' the bytes of all that was ever appended, with this.
-- args: node, inc, valid_until, number, body.
-- Value: '<entries> <bytes>' of the stream with this; '-1' if there is no such stream: that node is gone.
-- Status BUSY, and nothing was added, if it is full.
local function push(keys, args)
  local p, call = keys[1], redis.call
  if call('EXISTS', p .. 'in') == 0 then
    return { OK, '-1' }
  end
  local refused = refusal(p, args)
  if refused then
    return refused
  end
  local sums = call('HMGET', p .. 'fence', 'bytes', 'pushed')
  local entries, bytes, pushed = call('XLEN', p .. 'in'), tonumber(sums[1] or 0), tonumber(sums[2] or 0) + #args[5]
  if entries >= STREAM_ENTRIES or bytes >= STREAM_BYTES then
    return { BUSY, string.format('%.0f %.0f', entries, bytes) }
  end
  local sum = string.format('%.0f', pushed)
  bytes = string.format('%.0f', bytes + #args[5])
  call('XADD', p .. 'in', 'NOMKSTREAM', '0-*', 'b', args[5], 'n', sum)
  call('HSET', p .. 'fence', 'bytes', bytes, 'pushed', sum)
  return answered(p, args, string.format('%.0f ', entries + 1) .. bytes)
end

-- Its reader is done with what is before `minid`. args: minid. Returns the entries left. The bytes of these follow from
-- the oldest of them: whatever calls of the reader were lost, or came twice.
local function trim(keys, args)
  local p = keys[1]
  if redis.call('EXISTS', p .. 'in') == 0 then
    return 0
  end
  redis.call('XTRIM', p .. 'in', 'MINID', args[1])
  local first, bytes = redis.call('XRANGE', p .. 'in', '-', '+', 'COUNT', 1)[1], 0
  if first then
    local fields = first[2]
    bytes = tonumber(redis.call('HGET', p .. 'fence', 'pushed') or 0) - tonumber(fields[4] or 0) + #fields[2]
  end
  redis.call('HSET', p .. 'fence', 'bytes', string.format('%.0f', bytes))
  return redis.call('XLEN', p .. 'in')
end

-- The member is dead: nothing is added any more.
local function close(keys)
  return redis.call('UNLINK', keys[1] .. 'in', keys[1] .. 'fence')
end

redis.register_function { function_name = 'rk1_open', callback = open, flags = { 'allow-oom' } }
redis.register_function('rk1_push', push)
redis.register_function { function_name = 'rk1_trim', callback = trim, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_close', callback = close, flags = { 'allow-oom' } }

-- What a call has for partition streams: by member one entry, field 'b': '\1' and msgpack of {bodies, sessions,
-- groups}; sessions is flat {sid, seq or 0 for QoS 0, prefix, body, ...}, groups is flat {gid, entry id, member sid or
-- '', kept sid or '', body, depth, ...}. A body is the index of one in bodies, without its format byte; 0: look into
-- the queue.
local function parcel(out, p, member)
  local found = out[member]
  if not found then
    local long = redis.call('XLEN', p .. 'n:' .. member) > STREAM_LONG
    found = { bodies = {}, places = {}, sessions = {}, groups = {}, long = long }
    out[member] = found
  end
  return found
end

local function place(to, body)
  local index = to.places[body]
  if not index then
    index = #to.bodies + 1
    to.bodies[index] = body
    to.places[body] = index
  end
  return index
end

-- For a session that `member` owns.
local function send_session(out, p, member, sid, seq, prefix, body)
  local to = parcel(out, p, member)
  if to.long and seq == 0 then
    return
  end
  local list = to.sessions
  local n = #list
  list[n + 1], list[n + 2], list[n + 3], list[n + 4] = sid, seq, prefix, to.long and 0 or place(to, body)
end

-- Has a session that `member` owns look into its queue before anything newer is sent to it.
local function send_look(out, p, member, sid, prefix)
  local list = parcel(out, p, member).sessions
  local n = #list
  list[n + 1], list[n + 2], list[n + 3], list[n + 4] = sid, 0, prefix, 0
end

-- An entry of a group that was assigned to `member`.
local function send_entry(out, p, member, gid, id, sid, kept, body, depth)
  local to = parcel(out, p, member)
  local list = to.groups
  local n = #list
  list[n + 1], list[n + 2], list[n + 3], list[n + 4] = gid, id, sid, kept
  list[n + 5], list[n + 6] = place(to, body), depth
end

local function send_all(out, p)
  for member, to in pairs(out) do
    redis.call('XADD', p .. 'n:' .. member, 'NOMKSTREAM', 'MAXLEN', '~', STREAM_ENTRIES, '0-*', 'b',
      '\1' .. cmsgpack.pack({ to.bodies, to.sessions, to.groups }))
  end
end
