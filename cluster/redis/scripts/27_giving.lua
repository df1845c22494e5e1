-- How the entries of shared subscriptions are given out.

local GIVEN, GIVEN_BYTES = 200, 262144 -- what one call gives out at most; who acknowledges it makes it go on

-- Whether entries for the caller may go with the answer. What others give it, and what an answer has no place for, comes
-- by its stream, and two ways would mix up what one publisher sent: as long as it holds an entry that may have gone that
-- way, all others follow it.
local function is_only_way(p, group, caller)
  if redis.call('EXISTS', p .. 'n:' .. caller) == 0 then
    return true
  end
  local m = group.members[1]
  if group.members[2] or not m then
    return false
  end
  if m[STREAMED] and #redis.call('XPENDING', group.key, 'm', '-', m[STREAMED], 1, m[NAME]) > 0 then
    return false
  end
  m[STREAMED] = nil
  return true
end

-- How many entries the members have room for.
local function room_of(group)
  local room, fixed = 0, not values[group.strategy]
  for _, m in ipairs(group.members) do
    if m[SESSIONS] > 0 then
      room = room + math.max(0, (fixed and NODE_ROOM or m[WINDOW]) - m[COUNT])
    end
  end
  return room
end

local function waiting_of(group)
  local waiting = redis.call('XLEN', group.key) - group.orphans - group.kept
  for _, m in ipairs(group.members) do
    waiting = waiting - m[COUNT]
  end
  return waiting
end

-- Who gets an entry that belongs to a session: the node where that is, else any that has members.
local function keeper(p, group, sid)
  local record = redis.call('HGET', p .. 'gm:' .. group.gid, sid)
  local at, best
  if record then
    at = select(3, group_session(record))
  end
  for _, m in ipairs(group.members) do
    if m[SESSIONS] > 0 then
      if m[NAME] == at then
        return m
      end
      if not best or m[WINDOW] - m[COUNT] > best[WINDOW] - best[COUNT] then
        best = m
      end
    end
  end
  return best
end

local function claim(group, ids_of)
  for name, ids in pairs(ids_of) do
    for first = 1, #ids, CHUNK do
      local command = { 'XCLAIM', group.key, 'm', name, 0 }
      for i = first, math.min(first + CHUNK - 1, #ids) do
        command[#command + 1] = ids[i]
      end
      local n = #command
      command[n + 1], command[n + 2], command[n + 3], command[n + 4] = 'FORCE', 'JUSTID', 'LASTID', group.last
      redis.call(unpack(command))
    end
  end
end

-- Gives out what came back, oldest first. choose: who gets an entry; give: gives it; enough: whether to stop.
-- Returns how many left the consumer.
local function give_back(p, group, consumer, choose, give, enough)
  local key, left, gone = group.key, 0, {}
  for _, row in ipairs(redis.call('XPENDING', key, 'm', '-', '+', GIVEN, consumer)) do
    local id = row[1]
    local entry = redis.call('XRANGE', key, id, id)[1]
    if not entry then
      gone[#gone + 1] = id
    else
      local body = string.sub(entry[2][2], 2)
      local kept = consumer == 'k' and redis.call('HGET', p .. 'ga:' .. group.gid, id) or ''
      local m, sid = choose(body, id, kept)
      if m then
        give(m, id, sid, kept, body)
        left = left + 1
      end
    end
    if enough() then
      break
    end
  end
  if #gone > 0 then
    redis.call('XACK', key, 'm', unpack(gone))
  end
  return left + #gone
end

local function is_served(group)
  for _, m in ipairs(group.members) do
    if m[SESSIONS] > 0 then
      return true
    end
  end
  return false
end

-- Gives entries out while members have room: first what came back, then what nobody had yet. Where the strategy names
-- the session, an entry whose node has no room holds up those behind it.
-- `to` says how: caller; give(member, id, sid, kept, body), true if that goes with the answer; not_to (a set of ids that the caller returned);
-- added, {ids = , bodies = }: what is new, where that is all that nobody had yet.
-- Returns whether it stopped only because it gave out enough for one call.
local function give_out(p, group, to)
  local choose = chooser(p, group, to.caller)
  local ids_of, given, bytes = {}, 0, 0
  local function give(m, id, sid, kept, body)
    m[COUNT] = m[COUNT] + 1
    local ids = ids_of[m[NAME]]
    if ids then
      ids[#ids + 1] = id
    else
      ids_of[m[NAME]] = { id }
    end
    given, bytes = given + 1, bytes + #body
    if not to.give(m[NAME], id, sid, kept, body) and (not m[STREAMED] or is_older(m[STREAMED], id)) then
      m[STREAMED] = id
    end
  end
  local function enough()
    return given >= GIVEN or bytes >= GIVEN_BYTES
  end
  if group.kept > 0 and is_served(group) then
    group.kept = group.kept - give_back(p, group, 'k', function(_, _, sid)
      return keeper(p, group, sid), ''
    end, give, enough)
  end
  if group.orphans > 0 and not enough() and room_of(group) > 0 then
    group.orphans = group.orphans - give_back(p, group, 'o', function(body, id)
      return choose(body, to.not_to and to.not_to[id] and to.caller)
    end, give, enough)
  end
  if to.added then
    local ids, bodies = to.added.ids, to.added.bodies
    for i = 1, #ids do
      local m, sid = choose(bodies[i])
      if not m then
        break
      end
      group.last = ids[i]
      give(m, ids[i], sid, '', bodies[i])
    end
  else
    local count, taken
    repeat
      -- At first some, to learn how large they are.
      count = taken and math.ceil((GIVEN_BYTES - bytes) * given / bytes) or 8
      count, taken = math.min(count, room_of(group), GIVEN - given), 0
      local entries = count > 0 and redis.call('XRANGE', group.key, '(' .. group.last, '+', 'COUNT', count) or {}
      for _, entry in ipairs(entries) do
        local body = string.sub(entry[2][2], 2)
        local m, sid = choose(body)
        if not m then
          break
        end
        group.last, taken = entry[1], taken + 1
        give(m, entry[1], sid, '', body)
      end
    until taken < count or enough() or count <= 0
  end
  claim(group, ids_of)
  return enough()
end

-- Gives the caller all that is new, if nothing waits for anybody, no other member is there and it has room for them:
-- then the strategy has nothing to choose. Returns whether it did.
local function take_all(p, group, caller, ids)
  local m, count = group.members[1], #ids
  if group.members[2] or not values[group.strategy] or group.kept > 0 or not m or m[NAME] ~= caller
    or m[SESSIONS] == 0 or m[WINDOW] - m[COUNT] < count or not is_only_way(p, group, caller) then
    return false
  end
  if group.strategy == 'round_robin' then
    group.turn = math.max(group.turn, m[TURN]) + (count - 1) / m[SESSIONS]
    m[TURN] = group.turn + 1 / m[SESSIONS]
  end
  m[COUNT], group.last = m[COUNT] + count, ids[count]
  claim(group, { [caller] = ids })
  return true
end

-- Counts what each member holds anew: after calls that came twice, and now and then.
local function recount(group)
  local held = {}
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', group.key, 'm')) do
    local name, pending
    for i = 1, #row, 2 do
      if row[i] == 'name' then
        name = row[i + 1]
      elseif row[i] == 'pending' then
        pending = row[i + 1]
      end
    end
    held[name] = pending
  end
  group.orphans, group.kept = held['o'] or 0, held['k'] or 0
  for _, m in ipairs(group.members) do
    m[COUNT] = held[m[NAME]] or 0
  end
end

-- A member that serves no session and holds nothing is none.
local function forget_idle(p, group)
  for i = #group.members, 1, -1 do
    local m = group.members[i]
    if m[SESSIONS] == 0 and m[COUNT] <= 0 and #redis.call('XPENDING', group.key, 'm', '-', '+', 1, m[NAME]) == 0 then
      table.remove(group.members, i)
      redis.call('XGROUP', 'DELCONSUMER', group.key, 'm', m[NAME])
      redis.call('SREM', p .. 'ng:' .. m[NAME], group.gid)
    end
  end
end
