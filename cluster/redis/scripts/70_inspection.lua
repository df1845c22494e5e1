-- What operators ask for, and change (cluster/inspection.py).

do
  local LOOK = 1000 -- seqs that are looked at one by one

  -- When the message of a queue's record was accepted (its field 7), 0 if that cannot be told.
  local function accepted_at(record)
    local body = string.sub(record, 5 + 4 * struct.unpack('>I2', record, 3))
    local at = string.byte(body, 1) <= 0x9f and 2 or 4
    for _ = 1, 6 do
      at = at and behind(body, at)
    end
    local byte = at and string.byte(body, at)
    if byte == 0xcf or byte == 0xd3 then
      return struct.unpack('>I8', body, at + 1)
    elseif byte == 0xce then
      return struct.unpack('>I4', body, at + 1)
    end
    return 0
  end

  -- How many queued messages are at or below `sent`; for very long queues an upper bound.
  local function in_flight(queue, low, last, sent, count)
    if sent >= last then
      return count
    elseif sent - low >= LOOK then
      return math.min(count, sent - low + 1)
    end
    local found = 0
    for seq = low, sent do
      found = found + redis.call('HEXISTS', queue, seq)
    end
    return found
  end

  -- args: sids. Returns per sid nothing if there is no session, else {birth, expiry s, owner or '', time of its end or '',
  -- time of its beginning or '', 1 if it is somebody's, subscriptions, queued, their bytes, when the oldest was accepted,
  -- sent and not acknowledged, in release, inbound}.
  local function session_states(keys, args)
    local p, answer, call = keys[1], {}, redis.call
    for i, sid in ipairs(args) do
      local s = call('HMGET', p .. 's:' .. sid, 'c', 'expiry', 'owner', 'lo', 'created', 'identity')
      answer[i] = {}
      if s[1] then
        local queue, birth, last, count, bytes, releasing, sent = p .. 'q:' .. sid, struct.unpack(COUNTERS, s[1])
        local oldest, flying = 0, 0
        if count > 0 then
          local low = lowest(p, sid, tonumber(s[4]), last, count)
          local record = call('HGET', queue, low)
          oldest = record and string.byte(record) == 1 and accepted_at(record) or 0
          flying = in_flight(queue, low, last, sent, count)
        end
        answer[i] = { birth, tonumber(s[2]), s[3] or '', call('ZSCORE', p .. 't', 'e' .. sid) or '', s[5] or '',
          s[6] and 1 or 0, call('HLEN', p .. 'sub:' .. sid), count, bytes, oldest, flying, releasing,
          call('HLEN', p .. 'in:' .. sid) }
      end
    end
    return answer
  end

  -- Ends a session that nobody owns, with a will that waits. args: sid.
  -- Returns {0} if there is none, {2, owner}, or {1, birth, client id, subscriptions}.
  local function end_session(keys, args)
    local p, sid = keys[1], args[1]
    local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'client', 'owner')
    if not s[1] then
      return { 0 }
    elseif s[3] then
      return { 2, s[3] }
    end
    local subscriptions = redis.call('HGETALL', p .. 'sub:' .. sid)
    redis.call('ZREM', p .. 't', 'w' .. sid)
    redis.call('UNLINK', p .. 'will:' .. sid)
    wipe(p, sid, s[1], now_ms(), s[2])
    return { 1, tonumber(s[1]), s[2], subscriptions }
  end

  -- Changes the subscriptions of a session that nobody owns. args: sid, number of filters to remove, these, then filter,
  -- record ... Returns {0} if there is none, {2, owner}, or {1, birth}.
  local function change_subscriptions(keys, args)
    local p, sid, count = keys[1], args[1], tonumber(args[2])
    local s = redis.call('HMGET', p .. 's:' .. sid, 'birth', 'owner')
    if not s[1] then
      return { 0 }
    elseif s[2] then
      return { 2, s[2] }
    end
    local changed, gone, fields = {}, {}, {}
    for i = 3, 2 + count do
      gone[#gone + 1] = args[i]
      changed[#changed + 1] = args[i]
    end
    for i = 3 + count, #args, 2 do
      changed[#changed + 1] = args[i]
      fields[#fields + 1] = args[i]
      fields[#fields + 1] = args[i + 1]
    end
    in_chunks('HDEL', p .. 'sub:' .. sid, gone)
    in_chunks('HSET', p .. 'sub:' .. sid, fields)
    mark_routes(p, sid, s[1], changed, now_ms() + LEASE_MS)
    return { 1, tonumber(s[1]) }
  end

  -- args: gids. Returns per gid nothing if there is no such group, else {name or '', strategy, entries, id of the oldest
  -- or '', flat {member, entries that it holds, ...}, flat {sid, 'p' persistent or 'e', the member where it is connected
  -- or '', ...}}.
  local function group_states(keys, args)
    local p, answer = keys[1], {}
    for i, gid in ipairs(args) do
      local group = load_group(p, gid)
      answer[i] = {}
      if group then
        local first, holders, sessions = redis.call('XRANGE', group.key, '-', '+', 'COUNT', 1)[1], {}, {}
        for _, m in ipairs(group.members) do
          holders[#holders + 1] = m[NAME]
          holders[#holders + 1] = m[COUNT]
        end
        local all = redis.call('HGETALL', p .. 'gm:' .. gid)
        for j = 1, #all, 2 do
          local kind, _, at = group_session(all[j + 1])
          local n = #sessions
          sessions[n + 1], sessions[n + 2], sessions[n + 3] = all[j], kind, at
        end
        answer[i] = { redis.call('HGET', p .. 'gt', gid) or '', group.strategy, redis.call('XLEN', group.key),
          first and first[1] or '', holders, sessions }
      end
    end
    return answer
  end

  -- The next delayed messages. args: time, message id or '', limit. Those due later than that time count, with an id also
  -- those due then whose ids are higher, and with '' all that are due then. Returns flat {due, message id, ...}.
  local function delayed(keys, args)
    local p, from, after, limit = keys[1], tonumber(args[1]), 'd' .. args[2], tonumber(args[3])
    local count, answer = redis.call('HLEN', p .. 'dly'), {}
    if count == 0 then
      return answer
    end
    local function take(member, due)
      if #answer < 2 * limit and string.sub(member, 1, 1) == 'd' and (due > from or member > after) then
        answer[#answer + 1] = due
        answer[#answer + 1] = string.sub(member, 2)
      end
    end
    if redis.call('ZCARD', p .. 't') > 4 * count + 1000 then
      -- Most of the timers are other ones.
      local found = {}
      for _, id in ipairs(redis.call('HKEYS', p .. 'dly')) do
        local due = tonumber(redis.call('ZSCORE', p .. 't', 'd' .. id) or -1)
        if due >= from then
          found[#found + 1] = { due, 'd' .. id }
        end
      end
      table.sort(found, function(one, other)
        return one[1] < other[1] or (one[1] == other[1] and one[2] < other[2])
      end)
      for _, each in ipairs(found) do
        take(each[2], each[1])
      end
      return answer
    end
    local at, chunk = 0, limit
    repeat
      local page = redis.call('ZRANGEBYSCORE', p .. 't', args[1], '+inf', 'WITHSCORES', 'LIMIT', at, chunk)
      for i = 1, #page, 2 do
        take(page[i], tonumber(page[i + 1]))
      end
      at = at + chunk
      chunk = 1000
    until #page == 0 or #answer >= 2 * limit
    return answer
  end

  -- Takes back a delayed message that nobody publishes yet: then it is due later. args: message id, when it is due.
  -- Returns 1 if it did.
  local function cancel_delayed(keys, args)
    local p, item = keys[1], 'd' .. args[1]
    if tonumber(redis.call('ZSCORE', p .. 't', item) or -1) ~= tonumber(args[2]) then
      return 0
    end
    redis.call('ZREM', p .. 't', item)
    return redis.call('HDEL', p .. 'dly', args[1])
  end

  redis.register_function { function_name = 'rk1_session_states', callback = session_states, flags = { 'no-writes' } }
  redis.register_function { function_name = 'rk1_end_session', callback = end_session, flags = { 'allow-oom' } }
  redis.register_function('rk1_change_subscriptions', change_subscriptions)
  redis.register_function { function_name = 'rk1_remove_subscriptions', callback = change_subscriptions,
    flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_group_states', callback = group_states, flags = { 'no-writes' } }
  redis.register_function { function_name = 'rk1_delayed', callback = delayed, flags = { 'no-writes' } }
  redis.register_function { function_name = 'rk1_cancel_delayed', callback = cancel_delayed, flags = { 'allow-oom' } }
end
