-- What operators ask for, and change (cluster/inspection.py).

do
  local LOOK = 1000 -- seqs that are looked at one by one
  local LOOK_TIMERS = 300 -- timers in one call
  local FEW = 300 -- delayed messages of a partition that are looked at one by one, however many timers there are
  local STATES_BYTES = 262144 -- what is read for the states of groups in one call

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

  -- Takes the names of sessions that are not there out of the list: a library of before ended them and left their names.
  -- args: sid, client id, ... Returns how many that were.
  local function forget_sessions(keys, args)
    local p, gone = keys[1], {}
    for i = 1, #args, 2 do
      if redis.call('EXISTS', p .. 's:' .. args[i]) == 0 then
        gone[#gone + 1] = args[i + 1]
      end
    end
    in_chunks('ZREM', p .. 'ix', gone)
    return #gone
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

  -- The first bytes of what groups are called. args: how many bytes, gids. Returns per gid that, or ''.
  local function group_names(keys, args)
    local key, most, answer = keys[1] .. 'gt', tonumber(args[1]), {}
    for i = 2, #args do
      answer[i - 1] = string.sub(redis.call('HGET', key, args[i]) or '', 1, most)
    end
    return answer
  end

  -- args: gids. Returns for the first of these, for as many as are not too large together, nothing if there is no such
  -- group, else {name or '', strategy, entries, id of the oldest or '', sessions, flat {member, entries that it holds,
  -- sessions connected there, ...}}.
  local function group_states(keys, args)
    local p, answer, bytes = keys[1], {}, 0
    for i, gid in ipairs(args) do
      local group = load_group(p, gid)
      answer[i] = {}
      if group then
        local name = redis.call('HGET', p .. 'gt', gid) or ''
        local first, members = redis.call('XRANGE', group.key, '-', '+', 'COUNT', 1)[1], {}
        for _, m in ipairs(group.members) do
          local n = #members
          members[n + 1], members[n + 2], members[n + 3] = m[NAME], m[COUNT], m[SESSIONS]
        end
        answer[i] = { name, group.strategy, redis.call('XLEN', group.key), first and first[1] or '',
          redis.call('HLEN', p .. 'gm:' .. gid), members }
        -- There is no way to learn the id of an entry without its body.
        bytes = bytes + #name + (first and #first[2][2] or 0)
        if bytes >= STATES_BYTES then
          break
        end
      end
    end
    return answer
  end

  -- As the store orders it: strings are compared here by the rules of some language.
  local function is_behind(member, other)
    for i = 1, math.min(#member, #other) do
      local one, two = string.byte(member, i), string.byte(other, i)
      if one ~= two then
        return one > two
      end
    end
    return #member > #other
  end

  -- How many timers of that time are not behind `after`, which need not be there (any more).
  local function not_behind(timers, time, after)
    local function counts(at)
      local found = redis.call('ZRANGEBYSCORE', timers, time, time, 'LIMIT', at, 1)[1]
      return found and not is_behind(found, after)
    end
    local low, step = 0, 1
    while counts(low + step - 1) do
      low, step = low + step, 2 * step
    end
    local high = low + step - 1
    while low < high do
      local mid = math.floor((low + high) / 2)
      if counts(mid) then
        low = mid + 1
      else
        high = mid
      end
    end
    return low
  end

  -- Delayed messages due at a time or later, if a timer is given those behind it; a part of them, for which not many
  -- timers are looked at. args: time, timer or '', limit. Returns {time and timer to go on behind, or '' and '' if these
  -- are all, due, message id, ...}: in no order if there are few delayed messages, then some before that timer as well.
  local function delayed_part(keys, args)
    local timers, dly, limit, answer = keys[1] .. 't', keys[1] .. 'dly', tonumber(args[3]), { '', '' }
    local count, n = redis.call('HLEN', dly), 2
    if count == 0 then
      return answer
    elseif count <= FEW then
      for _, id in ipairs(redis.call('HKEYS', dly)) do
        local due = tonumber(redis.call('ZSCORE', timers, 'd' .. id) or -1)
        if due >= tonumber(args[1]) then
          answer[n + 1], answer[n + 2] = due, id
          n = n + 2
        end
      end
      return answer
    end
    local at = args[2] == '' and 0 or not_behind(timers, args[1], args[2])
    local page = redis.call('ZRANGEBYSCORE', timers, args[1], '+inf', 'WITHSCORES', 'LIMIT', at, LOOK_TIMERS)
    for i = 1, #page, 2 do
      local member, due = page[i], tonumber(page[i + 1])
      if string.byte(member) == 100 then -- 'd'
        answer[n + 1], answer[n + 2] = due, string.sub(member, 2)
        n = n + 2
      end
      if i == 2 * LOOK_TIMERS - 1 or n == 2 * limit + 2 then
        answer[1], answer[2] = due, member
        break
      end
    end
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
  redis.register_function { function_name = 'rk1_forget_sessions', callback = forget_sessions,
    flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_end_session', callback = end_session, flags = { 'allow-oom' } }
  redis.register_function('rk1_change_subscriptions', change_subscriptions)
  redis.register_function { function_name = 'rk1_remove_subscriptions', callback = change_subscriptions,
    flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_group_names', callback = group_names, flags = { 'no-writes' } }
  redis.register_function { function_name = 'rk1_group_states', callback = group_states, flags = { 'no-writes' } }
  redis.register_function { function_name = 'rk1_delayed_part', callback = delayed_part, flags = { 'no-writes' } }
  redis.register_function { function_name = 'rk1_cancel_delayed', callback = cancel_delayed, flags = { 'allow-oom' } }
end
