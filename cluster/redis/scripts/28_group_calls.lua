-- Shared subscriptions: the functions.

-- A persistent session is a member from now on, connected or not; the group's queue is there then.
-- args: gid, sid, birth, `$share/name/filter` (optional). Returns 1; 0 if a younger session has its place.
local function group_join(keys, args)
  local p, gid, sid, birth = keys[1], args[1], args[2], tonumber(args[3])
  local record, at = redis.call('HGET', p .. 'gm:' .. gid, sid), ''
  if record then
    local _, known, member = group_session(record)
    if known > birth then
      return 0
    elseif known == birth then
      at = member
    end
  end
  redis.call('HSET', p .. 'gm:' .. gid, sid, session_record('p', birth, at))
  if not load_group(p, gid) then
    save_group(p, new_group(p, gid))
  end
  name_group(p, gid, args[4])
  return 1
end

-- A session is no member any more; the group ends with its last one. args: gid, sid, birth.
-- Returns 1; 0 if it was none, or a younger session has its place.
local function group_leave(keys, args)
  local p, gid, sid = keys[1], args[1], args[2]
  local record = redis.call('HGET', p .. 'gm:' .. gid, sid)
  if not record then
    return 0
  end
  local _, known = group_session(record)
  if known > tonumber(args[3]) then
    return 0
  end
  redis.call('HDEL', p .. 'gm:' .. gid, sid)
  local group = load_group(p, gid)
  if group and redis.call('EXISTS', p .. 'gm:' .. gid) == 0 then
    end_group(p, gid, group)
  end
  return 1
end

-- Notes which sessions are connected at a member. batch: list of {sid, birth, persistent, window}. Returns the sum of
-- the windows and the number of sessions.
local function connect_sessions(p, gid, member, batch)
  local gm, window, sessions, here, changes, gone = p .. 'gm:' .. gid, 0, 0, {}, {}, {}
  local known, all = {}, redis.call('HGETALL', gm)
  for i = 1, #all, 2 do
    known[all[i]] = all[i + 1]
  end
  for _, each in ipairs(batch) do
    local sid, birth = each[1], each[2]
    local kind = (each[3] == 1 or each[3] == true) and 'p' or 'e'
    local record = known[sid]
    local was, born = nil, -1
    if record then
      was, born = group_session(record)
    end
    if born <= birth then
      if was == 'p' and born == birth then
        kind = 'p'
      end
      local wanted = session_record(kind, birth, member)
      if record ~= wanted then
        changes[#changes + 1] = sid
        changes[#changes + 1] = wanted
      end
      here[sid] = true
      window = window + each[4]
      sessions = sessions + 1
    end
  end
  for sid, record in pairs(known) do
    local kind, birth, at = group_session(record)
    if at == member and not here[sid] then
      if kind == 'p' then
        changes[#changes + 1] = sid
        changes[#changes + 1] = session_record(kind, birth, '')
      else
        gone[#gone + 1] = sid
      end
    end
  end
  in_chunks('HSET', gm, changes)
  in_chunks('HDEL', gm, gone)
  return window, sessions
end

-- Keeps `group` or ends it if it has no sessions; returns its depth, -2 if it ended.
local function keep_or_end(p, group)
  if redis.call('EXISTS', p .. 'gm:' .. group.gid) == 0 then
    end_group(p, group.gid, group)
    return -2
  end
  forget_idle(p, group)
  save_group(p, group)
  return redis.call('XLEN', group.key)
end

-- All connected sessions of a group at a member. args: gid, node, inc, strategy, msgpack of a list of {sid, birth,
-- persistent 0/1, window}, `$share/name/filter` (optional). Returns {1 if fenced, depth (-2: the group has no members at all), entries of the caller as
-- in rk1_group_settle}; these come by its partition stream if it has one, so that a lost answer loses none.
local function group_members(keys, args)
  local p, gid, caller = keys[1], args[1], args[2] .. ':' .. args[3]
  if is_fenced(p, args[2], args[3]) then
    return { 1, 0, {} }
  end
  local batch, group = cmsgpack.unpack(args[5]), load_group(p, gid)
  if not group then
    if #batch == 0 then
      return { 0, -2, {} }
    end
    group = new_group(p, gid)
  end
  local window, sessions = connect_sessions(p, gid, caller, batch)
  if sessions > 0 then
    name_group(p, gid, args[6])
    group.strategy = args[4]
    redis.call('SADD', p .. 'ng:' .. caller, gid)
  end
  local m = member_of(group, caller)
  if not m and sessions > 0 then
    m = { caller, 0, 0, group.turn, 0 }
    group.members[#group.members + 1] = m
  end
  if m then
    m[WINDOW], m[SESSIONS] = window, sessions
  end
  recount(group)
  local answer, out, by_stream = {}, {}, redis.call('EXISTS', p .. 'n:' .. caller) == 1
  local depth = redis.call('XLEN', group.key)
  give_out(p, group, { caller = caller, give = function(member, id, sid, kept, body)
    if member == caller and not by_stream then
      local n = #answer
      answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = id, sid, kept, '\1' .. body
      return true
    end
    send_entry(out, p, member, gid, id, sid, kept, body, depth)
  end })
  send_all(out, p)
  return { 0, keep_or_end(p, group), answer }
end

local HELD, HELD_BYTES = 1000, 1048576 -- a page of what a member holds

-- What a member holds: flat {entry id, '', kept sid or '', record, ...}, at most `limit` entries.
local function held_by(p, group, member, after, limit)
  local answer, bytes, n = {}, 0, 0
  for _, row in ipairs(redis.call('XPENDING', group.key, 'm', after, '+', limit, member)) do
    local id = row[1]
    local entry = redis.call('XRANGE', group.key, id, id)[1]
    if entry then
      answer[n + 1], answer[n + 2] = id, ''
      answer[n + 3], answer[n + 4] = redis.call('HGET', p .. 'ga:' .. group.gid, id) or '', entry[2][2]
      n, bytes = n + 4, bytes + #entry[2][2]
      if bytes >= HELD_BYTES then
        break
      end
    end
  end
  return answer
end

-- A page of the entries that a member holds. args: gid, node, inc, after entry id or '-'.
-- Returns flat {entry id, '', kept sid or '', record, ...}; nothing at the end.
local function group_held(keys, args)
  local p = keys[1]
  local group = load_group(p, args[1])
  if not group then
    return {}
  end
  local after = args[4] == '-' and '-' or '(' .. args[4]
  return held_by(p, group, args[2] .. ':' .. args[3], after, 100)
end

local function holds(group, member, id)
  return #redis.call('XPENDING', group.key, 'm', id, id, 1, member) == 1
end

-- Takes entries from who holds them, for others.
local function take_back(p, group, ids)
  local ids_of = { o = {}, k = {} }
  for _, id in ipairs(ids) do
    local to = redis.call('HEXISTS', p .. 'ga:' .. group.gid, id) == 1 and ids_of.k or ids_of.o
    to[#to + 1] = id
  end
  claim(group, ids_of)
  group.orphans, group.kept = group.orphans + #ids_of.o, group.kept + #ids_of.k
end

-- Removes acknowledged entries from the queue. Those older than all that somebody holds go in one piece: XDEL looks
-- for each entry on its own.
local function remove(group, acked, ga)
  local key, rest = group.key, {}
  local oldest = redis.call('XPENDING', key, 'm')[2]
  if not oldest then
    local ms, n = string.match(group.last, '^(%d+)-(%d+)$')
    oldest = string.format('%s-%.0f', ms, n + 1)
  end
  for _, id in ipairs(acked) do
    if not is_older(id, oldest) then
      rest[#rest + 1] = id
    end
  end
  if #rest < #acked then
    redis.call('XTRIM', key, 'MINID', oldest)
  end
  in_chunks('XDEL', key, rest)
  if redis.call('EXISTS', ga) == 1 then
    in_chunks('HDEL', ga, acked)
  end
end

-- One group of rk1_group_settle; out is what goes to others.
local function settle_group(p, caller, item, out)
  local call, gid = redis.call, item[1]
  local acked, returned, kept = item[2], item[3], item[4]
  local group = load_group(p, gid)
  local m = group and member_of(group, caller)
  if not m then
    return { group and call('XLEN', group.key) or -2, {} }
  end
  local key, ga, odd, done = group.key, p .. 'ga:' .. gid, false, 0
  for i = 1, #kept, 2 do
    if holds(group, caller, kept[i]) then
      call('HSET', ga, kept[i], kept[i + 1])
    end
  end
  for first = 1, #acked, CHUNK do
    local last = math.min(first + CHUNK - 1, #acked)
    local n = call('XACK', key, 'm', unpack(acked, first, last))
    m[COUNT] = m[COUNT] - n
    odd = odd or n < last - first + 1
    done = done + n
  end
  if done > 0 then
    remove(group, acked, ga)
  end
  local not_to, back = {}, {}
  for _, id in ipairs(returned) do
    if holds(group, caller, id) and not not_to[id] then
      not_to[id] = true
      back[#back + 1] = id
    else
      odd = true
    end
  end
  take_back(p, group, back)
  m[COUNT] = m[COUNT] - #back
  if odd then
    recount(group)
  end
  local depth, answer, n = call('XLEN', key), {}, 0
  if group.orphans + group.kept > 0 or waiting_of(group) > 0 then
    local direct = is_only_way(p, group, caller)
    give_out(p, group, { caller = caller, not_to = not_to, give = function(member, id, sid, kept_sid, body)
      if member ~= caller or not direct then
        send_entry(out, p, member, gid, id, sid, kept_sid, body, depth)
        return false
      end
      if not odd then
        answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = id, sid, kept_sid, '\1' .. body
        n = n + 4
      end
      return true
    end })
  end
  if m[SESSIONS] == 0 then
    forget_idle(p, group)
  end
  save_group(p, group)
  if odd then
    -- It came before, and what it then gave to the caller went astray with the answer.
    answer = held_by(p, group, caller, '-', HELD)
  end
  return { depth, answer }
end

-- A call that came before: nothing is done again, since what was returned may have come back to the caller meanwhile.
local function settled_before(p, caller, gid)
  local group = load_group(p, gid)
  if not group then
    return { -2, {} }
  end
  return { redis.call('XLEN', group.key), held_by(p, group, caller, '-', HELD) }
end

-- What a member is done with. args: node, inc, msgpack of a list of {gid, acknowledged entry ids, returned entry ids,
-- flat {entry id, sid it belongs to for good, ...}}, and a number that names the call (or none).
-- Returns per group {depth (-2: no such group), entries given to the caller, unless these come by its stream because
-- there are other members: flat {entry id, chosen sid or '', kept sid or '', record, ...}}; nothing if the caller is fenced. If any id was not held by the caller, which a repeated call
-- has, the entries are all that it holds.
local function group_settle(keys, args)
  local p, caller = keys[1], args[1] .. ':' .. args[2]
  if is_fenced(p, args[1], args[2]) then
    return {}
  end
  local answer, out, repeated = {}, {}, false
  if args[4] then
    local field, call = 's:' .. args[1], args[2] .. ' ' .. args[4]
    repeated = redis.call('HGET', p .. 'fence', field) == call
    redis.call('HSET', p .. 'fence', field, call)
  end
  for i, item in ipairs(cmsgpack.unpack(args[3])) do
    answer[i] = repeated and settled_before(p, caller, item[1]) or settle_group(p, caller, item, out)
  end
  send_all(out, p)
  return answer
end

-- args: gids. Returns per group lag (given to nobody), pending, id of the oldest entry or ''.
local function group_info(keys, args)
  local p, answer = keys[1], {}
  for _, gid in ipairs(args) do
    local group, lag, pending, oldest = load_group(p, gid), 0, 0, ''
    if group then
      for _, m in ipairs(group.members) do
        pending = pending + m[COUNT]
      end
      lag = redis.call('XLEN', group.key) - pending
      local first = redis.call('XRANGE', group.key, '-', '+', 'COUNT', 1)[1]
      oldest = first and first[1] or ''
    end
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3] = lag, pending, oldest
  end
  return answer
end

-- A member died: takes it out of a group and gives what it held to others. Returns whether it is out.
local function bury_in_group(p, gid, member, limit, out)
  local group = load_group(p, gid)
  if not group then
    return true
  end
  local m = member_of(group, member)
  if m then
    m[WINDOW], m[SESSIONS] = 0, 0
  end
  connect_sessions(p, gid, member, {})
  local rows = redis.call('XPENDING', group.key, 'm', '-', '+', limit, member)
  if #rows > 0 then
    local ids = {}
    for i, row in ipairs(rows) do
      ids[i] = row[1]
    end
    take_back(p, group, ids)
    if m then
      m[COUNT] = m[COUNT] - #ids
    end
  end
  local more = #rows == limit
  if redis.call('EXISTS', p .. 'gm:' .. gid) == 1 then
    local depth = redis.call('XLEN', group.key)
    more = give_out(p, group, { give = function(to, id, sid, kept, body)
      send_entry(out, p, to, gid, id, sid, kept, body, depth)
    end }) or more
  end
  keep_or_end(p, group)
  return not more
end

redis.register_function { function_name = 'rk1_group_join', callback = group_join, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_leave', callback = group_leave, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_members', callback = group_members, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_settle', callback = group_settle, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_held', callback = group_held, flags = { 'no-writes' } }
redis.register_function { function_name = 'rk1_group_info', callback = group_info, flags = { 'no-writes' } }
